// How every page draws a chart; returns its view.
window.drawChart = async (container, specification) => {
  const { view } = await vegaEmbed(container, specification, {
    mode: "vega",
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    tooltip: { theme: "page", disableDefaultStyle: true },
  });
  return view;
};
