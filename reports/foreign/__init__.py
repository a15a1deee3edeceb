"""Reads results of other programs: tables of runs, and files of lm-evaluation-harness, inspect and peft."""
