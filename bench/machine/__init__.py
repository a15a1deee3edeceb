"""Access to this machine and the network: files, memory, processes, downloads and their cache."""
