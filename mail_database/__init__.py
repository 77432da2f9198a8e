"""The embedded database endpoint: threading, loop checks, bounces and record creation, without an Odoo."""
