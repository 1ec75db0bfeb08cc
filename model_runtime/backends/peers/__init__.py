"""The runtimes that the benchmark suite compares, native among them: the same work behind one small interface."""
