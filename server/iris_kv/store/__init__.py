"""Where entries are kept: the protocol, the file store, and the model that tests compare it with."""
