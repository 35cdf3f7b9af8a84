"""What comes in and goes out: lists, pictures, videos and their pixels. All above may import it; it
imports system/ and settings alone."""
