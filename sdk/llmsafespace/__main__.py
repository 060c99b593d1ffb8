"""`python -m llmsafespace` is `llmsafespace`."""

from llmsafespace.cli import main

raise SystemExit(main())
