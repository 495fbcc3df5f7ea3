"""Request fields shared by several APIs."""
