"""Other servers of the same model, measured by the same client. One module each; it says what it takes."""
