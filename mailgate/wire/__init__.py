"""Pure protocol machines: bytes in, values out."""
