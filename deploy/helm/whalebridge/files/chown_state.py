"""Hands the directory of state over to the user that whalebridge runs as, where it is not that user's yet."""

import os
import sys

folder, user = sys.argv[1], int(sys.argv[2])
if os.stat(folder).st_uid != user:
    os.chown(folder, 0, 0)  # a root that may do nothing but this has to own it to be let in
    os.chmod(folder, 0o700)
    for name in os.listdir(folder):
        os.chown(os.path.join(folder, name), user, user, follow_symlinks=False)
    os.chown(folder, user, user)
