"""The studies of this system: every module that binds `Config` is one."""
