"""Where models and data come from: hubs, and packages of the index."""
