# The end of a rule whose command failed: sh ended.sh CODE LOG. What the system or a library of C has ended could say nothing itself.
case $1 in
127 | 134 | 135 | 137 | 139)
    echo "error: the command was ended from outside (code $1), as when memory is short; give it more and run again" |
        tee -a "$2" >&2
    exit 75
    ;;
esac
exit "$1"
