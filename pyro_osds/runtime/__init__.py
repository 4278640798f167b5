"""How work is done, whatever it is: precision, processes, chunks, progress, interruption, warnings, recording."""
