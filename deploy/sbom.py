"""Add the image's Debian packages to its SBOM.

    docker run ... | python deploy/sbom.py FILE

FILE is a CycloneDX document in JSON, and is replaced. Standard input has the control fields of the packages, as in
dpkg's `status` file.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
from pathlib import Path

DISTRIBUTION = "debian-13"


def main() -> int:
    """Rewrite the document."""
    path = Path(sys.argv[1])
    document = json.loads(path.read_text())
    packages = [component(paragraph) for paragraph in sys.stdin.read().split("\n\n") if paragraph.strip()]
    if not packages:
        sys.stderr.write(f"{path}: no Debian packages on standard input\n")
        return 1
    known = {each["bom-ref"] for each in document["components"]}
    document["components"] += [each for each in packages if each["bom-ref"] not in known]
    path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def component(paragraph: str) -> dict[str, str]:
    """Return the component of a package with these control fields."""
    lines = [line.partition(": ") for line in paragraph.splitlines() if not line.startswith(" ")]
    fields = {name: value for name, _, value in lines}
    name, version = fields["Package"], fields["Version"]
    query = urllib.parse.urlencode({"arch": fields["Architecture"], "distro": DISTRIBUTION})
    purl = f"pkg:deb/debian/{urllib.parse.quote(name)}@{urllib.parse.quote(version, safe='')}?{query}"
    return {"bom-ref": purl, "type": "library", "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    sys.exit(main())
