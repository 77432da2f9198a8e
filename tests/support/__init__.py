"""The cast of the tests: mail servers, databases and their players, each a real process or socket."""
