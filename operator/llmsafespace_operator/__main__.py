"""`python -m llmsafespace_operator`."""

from llmsafespace_operator.app import main

if __name__ == "__main__":
    main()
