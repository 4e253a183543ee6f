"""Change the owner of the state directory to the user of the bridge, if it is another one."""

import os
import sys

directory, user = sys.argv[1], int(sys.argv[2])
if os.stat(directory).st_uid != user:
    os.chown(directory, 0, 0)  # root with no capability but CHOWN must own the directory to open it
    os.chmod(directory, 0o700)
    for name in os.listdir(directory):
        os.chown(os.path.join(directory, name), user, user, follow_symlinks=False)
    os.chown(directory, user, user)
