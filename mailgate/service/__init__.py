"""The resident service: the same walk for a stream of messages, taken from an MTA over LMTP.

    __main__.py      the process: options, sockets, signals, the end
    connection.py    what is said to an MTA, verb by verb
    service.py       what the connections share; how it is stopped
    delivery.py      one message from its last line to its replies
    workers.py       who delivers what when, and within which bounds
    directory.py     which addresses the database has
    socketmap.py     the same for Postfix, address by address
    metrics.py       what a monitor is told: counters, for Prometheus, and health
    listen.py        sockets, and who may use them

One thread speaks with the MTAs. A message goes to a spool as it comes, waits for one of a few workers (threads), and
takes the walk there (walk.py); the replies, one for each recipient, are read off the table of endings (outcome.py). How
many may wait, and how many may connect, is bounded, and so is the memory it takes.
"""
