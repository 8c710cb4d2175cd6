# Measured tokens per second against ranks; a ring marks points with more threads than cores.
# Reads throughput.dat: one block per strategy of ranks, tokens/s and 1 when oversubscribed, then the
# guide: the best rate at the fewest ranks, in proportion to the cores that work.
figure = "throughput"
load figure.".vars"
load "style.gp"
data = figure.".dat"

n = words(strategies)
set title heading
set logscale x 2
set xrange [first_ranks / 1.2:last_ranks * 1.2]
set yrange [0:top]
set xtics nomirror 1e30
set for [r in rank_counts] xtics add (r r + 0)
set xlabel "ranks"
set ylabel "tokens per second, measured"
set format y "%.0f"
plot data index n using 1:2 title "ideal by cores used" with lines linetype 22, \
    for [i = 1:n] data index i - 1 using 1:2 title word(strategies, i) with linespoints \
        linetype series(i) linewidth 1.5, \
    for [i = 1:n * (oversubscribed > 0)] data index i - 1 using 1:($3 > 0 ? $2 : NaN) \
        title (i == 1 ? "threads > cores" : "") with points linetype 23
