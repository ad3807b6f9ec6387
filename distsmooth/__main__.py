"`python -m distsmooth`, and `accelerate launch -m distsmooth`: the command line"
from .cli import main

if __name__ == '__main__': main()
