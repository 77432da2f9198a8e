"""Run the program many times: each run is a process of its own, forked after the imports, which cost the most.

Reads a job a line (JSON: argv, path of the message) and answers each with a line (JSON: exit status, output).
"""

import json
import os
import sys
import xmlrpc.client  # noqa: F401 what the program imports when it needs it, imported once for all runs
from pathlib import Path

import dotenv.parser  # noqa: F401
import requests  # noqa: F401
import tenacity  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[2]))
import mail_gateway

for line in sys.stdin:
    job = json.loads(line)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(job["message"], os.O_RDONLY), 0)
        os.dup2(writer, 1)
        sys.argv[1:] = [os.fsdecode(bytes.fromhex(argument)) for argument in job["argv"]]
        mail_gateway.run()
    os.close(writer)
    with open(reader, "rb") as output:
        printed = output.read()
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status), "out": printed.hex()}), flush=True)
