"""What a node keeps on disk: blocks with certificates, the state at the head, indexes, and the sign guard."""
