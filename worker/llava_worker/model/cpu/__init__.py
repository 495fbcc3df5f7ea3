"""C++ kernels for CPUs, with the code that compiles and calls them. See README.md."""
