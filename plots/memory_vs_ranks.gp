# Peak memory of the worst rank against the number of ranks, log-log, with a 1/N guide.
# Reads memory_vs_ranks.dat: one block per strategy of ranks and bytes.
figure = "memory_vs_ranks"
load figure.".vars"
load "style.gp"
data = figure.".dat"

set title heading
set logscale y
set logscale x 2
set xrange [first_ranks / 1.2:last_ranks * 1.2]
set yrange [bottom:top]
set xlabel "ranks"
set ylabel "peak memory per rank (".unit.")"
set format "%g"
do for [power = -4:5] {
    do for [lead in "2 5"] {
        at = lead * 10.0 ** power
        if (at > bottom && at < top) { set ytics add (sprintf("%g", at) at) }
    }
}
plot guide * first_ranks / x / scale title "1/N guide" with lines linetype 22, \
    for [i = 1:words(strategies)] data index i - 1 using 1:($2 / scale) \
        title word(strategies, i) with linespoints linetype series(i) linewidth 1.5, \
    for [i = 1:limit > 0] limit / scale title limit_label with lines linetype 21
