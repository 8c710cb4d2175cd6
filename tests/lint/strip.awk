# strip(line): the code of a line, without comments and the insides of strings. State: in_comment.
function strip(line,    out, i, c, two) {
    out = ""
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1); two = substr(line, i, 2)
        if (in_comment) {
            if (two == "*/") { in_comment = 0; i++ }
        } else if (two == "/*") { in_comment = 1; i++
        } else if (two == "//") { break
        } else if (c == "\"" || c == "'") { i = skip_string(line, i, c); out = out c c
        } else out = out c
    }
    return out
}
function skip_string(line, i, quote,    c) {
    while (++i <= length(line)) {
        c = substr(line, i, 1)
        if (c == "\\") i++
        else if (c == quote) break
    }
    return i
}
