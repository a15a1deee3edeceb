"""The machine and the network: files, memory, processes, downloads and their cache."""
