# What may be written only in certain files, and what nowhere. Run behind strip.awk.
function say(text) { print FILENAME ":" FNR ": " text; bad = 1 }
function room_of(path) { sub("/[^/]*$", "", path); return path }

# Words banned in this file, as one pattern on whole identifiers; "" bans nothing.
function words_for_file(    w) {
    if (room ~ /^tests/) return ""
    w = "gets|strcpy|strcat|sprintf|vsprintf|atoi|atof|rand|srand|alloca|longjmp"
    if (FILENAME != "kernels/base/option.c") w = w "|getenv|secure_getenv"
    if (FILENAME != "kernels/base/heap.c")
        w = w "|malloc|calloc|realloc|free|strdup|strndup|asprintf|vasprintf|aligned_alloc|posix_memalign"
    if (room != "bench" && FILENAME !~ /^kernels\/base\/(log|err)\.c$/)
        w = w "|printf|vprintf|puts|putchar|perror|stdout|stderr"
    if (FILENAME != "bench/main.c" && FILENAME != "kernels/base/err.c") w = w "|exit|abort"
    return w
}
# A backend's name inside an identifier. Registries list backends; nccl lives in engines/comm; CPU time and
# the CPU sets of the operating system are not the backend.
function names_backend(id) {
    if (room ~ /^(tests|kernels\/cpu|kernels\/cuda|kernels\/virtual)/ || FILENAME ~ /_registry\.[ch]$/)
        return 0
    if (room == "engines/comm" && tolower(id) ~ /(^|_)nccl(_|$)/) return 0
    if (id ~ /^CLOCK_|^cpu_set_t$|^CPU_[A-Z_]+$|cpu_ns|^__builtin_cpu/) return 0
    return tolower(id) ~ /(^|_)(cpu|cuda|mpi|nccl)(_|$)/ || id ~ /^(nccl|cuda|cublas|cudnn)[A-Z]/
}
function names_other_half(id) {
    if (room ~ /^engines/ && room != "engines/api") return tolower(id) ~ /(^|_)(gpt2?|llama)(_|$)/
    if (room == "models") return tolower(id) ~ /(^|_)(ddp|zero[123]|fsdp)(_|$)/
    return 0
}

FNR == 1 {
    room = room_of(FILENAME); in_comment = 0
    banned = words_for_file()
    if ($0 !~ /^\/\* /) say("a file opens with two lines on its room")
}
/\t/ { say("tab") }
/[ ]$/ { say("blank at the end of the line") }
/(^|[^A-Za-z_])(TODO|FIXME|HACK)([^A-Za-z_]|$)/ { say("unfinished: " $0) }
/^#[ ]*if[ ]+0/ { say("code that no build compiles") }
{
    code = strip($0)
    if (code ~ /^#[ ]*include/) next
    while (match(code, /[A-Za-z_][A-Za-z0-9_]*/)) {
        id = substr(code, RSTART, RLENGTH)
        before = substr(code, RSTART - 1, 1)
        code = substr(code, RSTART + RLENGTH)
        called = code ~ /^\(/ || id ~ /^std(out|err)$/
        # A field of this name (x.free, x->exit) is not the function.
        if (banned != "" && called && before != "." && before != ">" && id ~ "^(" banned ")$")
            say(id " is not used here")
        if (names_backend(id)) say("a backend is named outside its room: " id)
        if (names_other_half(id)) say("engines name no model kind, models no engine: " id)
    }
}
END { exit bad }
