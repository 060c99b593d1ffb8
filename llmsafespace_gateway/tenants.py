"""The tenant that means something to the gateway itself."""

DEFAULT_TENANT = "default"  # the operator's: its admins manage users and quotas of every tenant
