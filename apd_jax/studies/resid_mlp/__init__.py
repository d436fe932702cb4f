"""Residual MLPs that compute more functions than they have neurons (sections 3.2 and 3.3)."""
