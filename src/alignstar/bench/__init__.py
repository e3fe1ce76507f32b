"""What Alignstar is compared with, and the commands behind every figure."""
