# Loss of every strategy, overlaid, and below it the difference from the first one.
# Reads loss.dat: step, then one column of losses per strategy; in a second data set the same of
# validation, drawn as dashes with open marks.
figure = "loss"
load figure.".vars"
load "style.gp"
data = figure.".dat"

# Lines lie inside each other and marks take turns, so that equal curves all show.
n = words(strategies)
width(i) = 1 + 7.0 * (n - i) / n
set multiplot
set lmargin at screen 0.14
set rmargin at screen 0.74
set bmargin at screen 0.40
set tmargin at screen 0.90
set title heading
set format x ""
set ylabel "loss"
plot for [i = 1:n] data index 0 using 1:(column(i + 1)) notitle with lines linetype series(i) \
        dashtype solid linewidth width(i), \
    for [i = 1:n] data index 0 every n::i - 1 using 1:(column(i + 1)) notitle with points \
        linetype series(i) linewidth 2, \
    for [i = 1:n] keyentry with linespoints linetype series(i) dashtype solid linewidth 2 \
        title word(strategies, i), \
    for [i = 1:n * validated] data index validated using 1:(column(i + 1)) notitle \
        with linespoints linetype series(i) dashtype (6, 4) linewidth 1.5 pointtype 6 pointsize 1.2, \
    for [i = 1:validated] keyentry with linespoints linetype series(1) dashtype (6, 4) \
        linewidth 1.5 pointtype 6 pointsize 1.2 title "validation"

set bmargin at screen 0.13
set tmargin at screen 0.34
unset title
unset key
set format x "%g"
set format y "%.0e"
set xlabel "step"
set ylabel "minus ".word(strategies, 1)
set yrange [-spread:spread]
set ytics (sprintf("%.0e", -spread) -spread, "0" 0, sprintf("%.0e", spread) spread)
set label verdict at graph 0.5, graph 0.85 center noenhanced
plot for [i = 1:n] data index 0 using 1:(column(i + 1) - column(2)) notitle with lines \
        linetype series(i) dashtype solid linewidth width(i), \
    for [i = 1:n] data index 0 every n::i - 1 using 1:(column(i + 1) - column(2)) notitle with points \
        linetype series(i) linewidth 2
unset multiplot
