"""What goes over the wire: fields with their bounds, and problems."""
