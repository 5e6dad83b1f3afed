"""How good is it: closed-loop runs, intervals, and a report that one likes to look at."""
