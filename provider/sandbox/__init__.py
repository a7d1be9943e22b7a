"""The sandbox: a job is hostile until proven otherwise, and runs as a plan that is data before it is carried out.

`executor.Sandbox` is the door; `probe` says what this host can enforce, `runtimes` builds what a job sees. design.md
section 6, threats.md section 1.
"""
