"""The operator's desk: where is my mail, why did it end so, how do I get it in, is everything set up.

It asks the code that decides (settings, rules, walk, journal) and the database, and has no rules of its own.
"""
