"""Make the user of the bridge the owner of the state directory."""

import os
import sys

directory, user = sys.argv[1], int(sys.argv[2])
if os.stat(directory).st_uid != user:
    os.chown(directory, 0, 0)  # without CAP_DAC_OVERRIDE, root can open only its own directory
    os.chmod(directory, 0o700)
    for name in os.listdir(directory):
        os.chown(os.path.join(directory, name), user, user, follow_symlinks=False)
    os.chown(directory, user, user)
