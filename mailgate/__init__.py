"""The rooms that one message walks through; ``mail_gateway.py`` shows the walk itself."""

__version__ = "0.1.0"

# Seconds that a whole run may take, from reading the settings to the exit status. It must end before the MTA
# loses patience, for that bounces: Postfix's command_time_limit is 1000 s, and 900 s is what we recommend for
# it and for Exim's timeout (3600 s by default). The last 60 s are for a name lookup, which no signal interrupts.
DEADLINE = 840

# Where the settings file is, and where the service listens, unless an option or a variable says otherwise.
ENV_FILE = "/etc/mail-gateway.env"
LMTP = "/run/mail-gateway/lmtp.sock"
