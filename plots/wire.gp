# Bytes that a rank sends in one step, stacked by collective, one bar per strategy.
# Reads wire.dat: strategy, total, then one column per kind of collective (bytes).
figure = "wire"
load figure.".vars"
load "style.gp"
data = figure.".dat"

array kind_colour[5] = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#404040"]
array kind_fill[5] = [4, 2, 3, 5, 1]

set title heading
set style data histograms
set style histogram rowstacked
set style fill border linecolor rgb "#202020"
set boxwidth 0.66
set xtics scale 0 font ",11" noenhanced
set xrange [-0.6:bars - 0.4]
set grid noxtics
set ylabel "sent per rank and step (".unit.")"
set yrange [0:top]
set key invert
plot for [i = 1:words(used)] k = int(word(used, i)) data using (column(k + 2) / scale):xtic(1) \
        title word(kinds, k) linecolor rgb kind_colour[k] fillstyle pattern kind_fill[k], \
    data using 0:($2 / scale):(sprintf("%.3g", $2 / scale)) with labels offset 0, 0.7 notitle
