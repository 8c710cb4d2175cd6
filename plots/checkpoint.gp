# Seconds until a checkpoint is durable against its bytes, log-log, with the best rate as a guide.
# Reads checkpoint.dat: one block per strategy of bytes, seconds, ranks and model; every save is a point.
figure = "checkpoint"
load figure.".vars"
load "style.gp"
data = figure.".dat"

set title heading
set logscale xy
set xrange [first_bytes / scale / 1.5:last_bytes / scale * 1.5]
set yrange [bottom:top]
set xlabel "bytes of all ranks (".unit.")"
set ylabel "seconds"
set format "%g"
do for [power = -6:5] {
    do for [lead in "2 5"] {
        at = lead * 10.0 ** power
        set xtics add (sprintf("%g", at) at)
        set ytics add (sprintf("%g", at) at)
    }
}
plot x * scale / best title sprintf("best: %.3g MiB/s", best / 1048576) with lines linetype 22, \
    for [i = 1:words(strategies)] data index i - 1 using ($1 / scale):2 \
        title word(strategies, i) with points linetype series(i) linewidth 1.5
