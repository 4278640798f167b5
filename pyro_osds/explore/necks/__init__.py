"""Necks: where many coordinates become narrow as one goes outwards, and a flow loses what lies further on."""
