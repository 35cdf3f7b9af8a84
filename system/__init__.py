"""What stands under all: safe files, the command line, the machine, progress. All may import it; it
imports settings alone."""
