# The end of a rule whose command failed: sh ended.sh CODE LOG. What the system or a library of C has ended could say nothing itself.
case $1 in
127) why="the command could not be started (code 127): it is missing, or memory is short; the line before this tells which" ;;
134 | 135 | 137 | 139) why="the command was ended from outside (code $1), as when memory is short; give it more and run again" ;;
*) exit "$1" ;;
esac
echo "error: $why" | tee -a "$2" >&2
exit 75
