"""Devices and processes: the mesh and where every array lies on it, hosts that meet and agree, chips, compilation."""
