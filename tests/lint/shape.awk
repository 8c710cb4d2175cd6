# Lengths (files 600 lines, functions 80), base names, and a contract comment for every function
# declared in a header above the ground floor.
function say(text) { print FILENAME ":" FNR ": " text; bad = 1 }
FNR == 1 {
    name = FILENAME; sub(".*/", "", name)
    if (name in owner) say("base name also used by " owner[name])
    owner[name] = FILENAME
    is_header = FILENAME ~ /\.h$/ && FILENAME !~ /^(tests|bench|kernels\/base)\//
    covered = 0; body_at = 0
}
FNR == 601 { say("file of more than 600 lines") }
/^\{/ { body_at = FNR }
/^\}/ {
    if (body_at && FNR - body_at - 1 > 80) say("function of " FNR - body_at - 1 " lines")
    body_at = 0
}
is_header && /^$/ { covered = 0 }
is_header && /\*\/$/ { covered = 1 }
# A static inline function shows its body.
is_header && /^static inline/ { covered = 1 }
is_header && /^[A-Za-z_][A-Za-z0-9_ *]*\(/ && !/^[A-Z_]+\(/ && !/^(typedef|static|extern)/ && !/\/\*/ && !covered {
    say("no contract comment above: " $0)
}
END { exit bad }
