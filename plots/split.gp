# What the peak is made of, against sequence length and batch: state, activations, and what is temporary.
# Reads split.dat: place, batch, sequence, state, activations, temporary, total (bytes), one bar per
# line; then a block of the middle of each group and its batch.
figure = "split"
load figure.".vars"
load "style.gp"
data = figure.".dat"

set title heading
set boxwidth 0.8
set style fill border linecolor rgb "#202020"
set xrange [-0.8:places - 0.2]
set yrange [0:top]
tic_font = places > 9 ? ",9" : ",11"
set xtics scale 0 font tic_font
set grid noxtics
set bmargin 6
set xlabel "sequence length, grouped by batch per rank\n(on top: share of activations)" offset 0, -1.6
set ylabel "peak memory per rank (".unit.")"
plot data index 0 using 1:($7 / scale):xtic(3) title "temporary" with boxes \
        linecolor rgb "#cc79a7" fillstyle pattern 5, \
    data index 0 using 1:(($4 + $5) / scale) title "activations" with boxes \
        linecolor rgb "#f0e442" fillstyle pattern 3, \
    data index 0 using 1:($4 / scale) title "state" with boxes \
        linecolor rgb "#0072b2" fillstyle pattern 2, \
    data index 0 using 1:($7 / scale):(sprintf("%.0f%%", 100.0 * $5 / $7)) with labels \
        font ",10" offset 0, 0.6 notitle, \
    data index 1 using 1:(0):(sprintf("batch %d", $2)) with labels offset 0, -2.3 notitle, \
    for [i = 1:limit > 0] limit / scale title limit_label with lines linetype 21
