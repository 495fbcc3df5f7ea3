"""C++ kernels for CPUs, and the code that compiles and calls them. See README.md."""
