# Enforces layers.txt (the first file named) on the #include lines of the others.
function room_of(path) { sub("/[^/]*$", "", path); return path }
function say(text) { print FILENAME ":" FNR ": " text; bad = 1 }

FILENAME ~ /layers\.txt$/ {
    if ($0 ~ /^#/ || NF == 0) next
    name = $1; sub(/:$/, "", name)
    known[name] = 1
    for (i = 2; i <= NF; i++) may[name, $i] = 1
    next
}
FNR == 1 { room = room_of(FILENAME); free = room ~ /^tests/ }
FNR == 1 && !free && !(room in known) { say("room " room " is not in layers.txt") }
free || $0 !~ /^#[ ]*include/ { next }
/"/ {
    split($0, part, "\"")
    below = room_of(part[2])
    if (part[2] !~ "/") say("includes are root-relative: \"" part[2] "\"")
    else if (below != room && !((room, below) in may)) say(room " may not include " below)
}
/</ {
    match($0, /<[^>]*>/)
    header = substr($0, RSTART, RLENGTH)
    if ((header in known) && !((header, room) in may)) say(room " may not include " header)
}
END { exit bad }
