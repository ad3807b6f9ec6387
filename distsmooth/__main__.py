"`python -m distsmooth`, and `torchrun -m distsmooth`: the command line"
from .cli import main

if __name__ == '__main__': main()
