"""`python -m llmsafespace_gateway` is `llmsafespace-gateway`."""

from llmsafespace_gateway.app import main

main()
