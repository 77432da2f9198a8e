"""What a person sees in a browser: records and their threads, red envelopes, and what was placed nowhere.

app.py makes the pages, access.py lets people in, text.py makes of a message's body what may stand in a frame.
"""
