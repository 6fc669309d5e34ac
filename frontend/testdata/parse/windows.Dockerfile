# escape = `
FROM a
RUN dir c:\ `
  && x `

  # comment
  y
ENV A=`"b C="c `" d" D=\
COPY --chown=a`=b x c:\
RUN last ` 