#!/usr/bin/env python3
"""A probe and a fix in one program: a spool folder must not hold too many files.

It speaks the program protocol of homeostat (docs/src/library.md): one line of JSON on stdin, one on stdout.

    check("mail/queue",
          probe = program(["/usr/local/bin/queue_depth.py"], parameters = {"folder": "/var/spool/mail-out", "most": 100}),
          fix = program(["/usr/local/bin/queue_depth.py"], parameters = {"folder": "/var/spool/mail-out", "most": 100}))

As a fix it moves the oldest files aside, into a folder beside the spool, until there are few enough. Doing that again
does nothing, and being killed half way leaves every file in one folder or the other.
"""

import json
import os
import sys

VERSION = 1


def oldest_first(folder):
    entries = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return sorted(entries, key=lambda entry: (entry.stat().st_mtime, entry.name))


def answer(request):
    if request["version"] != VERSION:
        return {"verdict": "not-run", "seen": f"version {request['version']} of the protocol is not known"}
    folder = request["parameters"]["folder"]
    most = request["parameters"]["most"]
    aside = folder.rstrip("/") + ".aside"
    try:
        files = oldest_first(folder)
    except OSError as error:
        return {"verdict": "fail", "expected": f"a folder {folder}", "seen": str(error)}
    surplus = files[: max(0, len(files) - most)]

    if request["do"] == "probe":
        return {
            "verdict": "fail" if surplus else "pass",
            "expected": f"at most {most} files in {folder}",
            "seen": f"{len(files)} files",
            "evidence": {"oldest": [entry.name for entry in files[:3]]},
        }
    if request["do"] == "plan":
        steps = [f"move {entry.path} to {aside}" for entry in surplus]
        return {"verdict": "fail" if steps else "pass", "steps": steps}
    if request["do"] == "fix":
        if not surplus:
            return {"verdict": "unchanged"}
        os.makedirs(aside, exist_ok=True)
        for entry in surplus:
            os.rename(entry.path, os.path.join(aside, entry.name))
        return {"verdict": "changed", "seen": f"moved {len(surplus)} files to {aside}"}
    return {"verdict": "not-run", "seen": f"{request['do']!r} is not known"}


if __name__ == "__main__":
    print(json.dumps({"version": VERSION, **answer(json.loads(sys.stdin.readline()))}))
